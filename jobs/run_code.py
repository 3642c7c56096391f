"""Run the code of programming exercises (task code) against its own tests, in a sandbox; see docs/sandbox.md.

No model is asked. The table code_runs gets the number of tests that pass; what was run before is not run again.
"""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis import code_runs

STEP = Step(code_runs.STEP, code_runs.run_code, check=code_runs.check, on_request=True)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
