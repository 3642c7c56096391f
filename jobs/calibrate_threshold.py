"""Show pairs of personas around a cosine, for choosing dedup.semantic.threshold by eye."""

from decimal import Decimal

from personahub_spark.hub.calibration import calibrate
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.settings.loading import load


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--around", type=Decimal, help="the cosine (default: dedup.semantic.threshold)")
    options.add_argument(
        "--width", type=Decimal, default=Decimal("0.1"), help="how far to both sides (default: %(default)s)"
    )
    options.add_argument("--pairs", type=int, default=3, help="pairs of each of the ten ranges (default: %(default)s)")
    arguments = options.parse_args()
    with exit_code():
        context = open_context(load(arguments.conf, arguments.set))
        around = arguments.around or context.settings.dedup.semantic.threshold
        print("\n".join(calibrate(context, around=around, width=arguments.width, pairs=arguments.pairs)))


if __name__ == "__main__":
    main()
