"""Import existing personas from the files listed in the setting imports, with their source and licence.

A file that was imported completely is not read again, unless it changed. Texts that come with a persona and a task go
to syntheses; unreadable rows go to quarantine, with file, line and reason.
"""

from personahub_spark.hub import importing
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.sources import imports

STEP = Step("import_personas", importing.import_all, check=imports.check_inputs, on_request=True)


if __name__ == "__main__":
    main(STEP, doc=__doc__)
