"""Import personas that exist already, from the files of the settings' list imports, with their source and licence.

A file that was imported to its end is not read again, unless it was changed. Texts that come with a persona and a task
go to syntheses; what cannot be read goes to quarantine, with file, line and reason.
"""

from personahub_spark.hub import importing
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.sources import imports

STEP = Step("import_personas", importing.import_all, check=imports.check_inputs, on_request=True)


if __name__ == "__main__":
    main(STEP, doc=__doc__)
