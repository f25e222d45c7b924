"""Run the benchmarks and write their tables.

    make bench DATA=<folder with train.parquet and test.parquet of MNIST>
    python -m benchmarks.run --only scheduler_speed startup

Results are JSON files in benchmarks/results; benchmarks/README.md is rendered from all files that exist there.
"""

import json
import sys
from collections.abc import Sequence

from benchmarks import (
    adm_networks,
    architecture,
    before_after,
    bits_per_dim,
    busy_machine,
    ddgan,
    ddgan_speed,
    gaussians,
    gpu_page,
    guidance,
    guidance_cost,
    guided_gaussians,
    hub_transfer,
    metric_sensitivity,
    mode_coverage,
    objectives,
    photo_memory,
    pipeline_overhead,
    sampling_speed,
    scheduler_speed,
    startup,
    throughput,
    time_to_quality,
    unet_ablation,
    vae_nll,
    vae_peers,
)
from benchmarks.options import Options, parse
from benchmarks.report import machine, section, write_json

BENCHMARKS = {
    "scheduler_speed": scheduler_speed,
    "startup": startup,
    "busy_machine": busy_machine,
    "photo_memory": photo_memory,
    "adm_networks": adm_networks,
    "throughput": throughput,
    "ddgan_speed": ddgan_speed,
    "sampling_speed": sampling_speed,
    "pipeline_overhead": pipeline_overhead,
    "hub_transfer": hub_transfer,
    "metric_sensitivity": metric_sensitivity,
    "unet_ablation": unet_ablation,
    "objectives": objectives,
    "bits_per_dim": bits_per_dim,
    "vae_nll": vae_nll,
    "vae_peers": vae_peers,
    "guided_gaussians": guided_gaussians,
    "guidance_cost": guidance_cost,
    "time_to_quality": time_to_quality,
}
OF_KEPT_CELLS = ("objectives", "bits_per_dim", "vae_nll")  # --kept renders their tables from the cells on disk


ALONE = {  # run by their own command lines
    "before_after": before_after,
    "architecture": architecture,
    "guidance": guidance,
    "ddgan": ddgan,
    "gaussians": gaussians,
    "mode_coverage": mode_coverage,
}
ON_THE_PAGE = BENCHMARKS | ALONE


def main(argv: Sequence[str] | None = None) -> None:
    options, names = parse(sys.argv[1:] if argv is None else argv, list(BENCHMARKS))
    for name in names:
        print(f"--- {name}", flush=True)
        if options.kept and name not in OF_KEPT_CELLS:
            write_page(options)
            continue
        about = {"machine": machine(), "command": options.command, "quick": options.quick}
        result = about | BENCHMARKS[name].measure(options)
        write_json(options.out / "results" / f"{name}.json", result)
        print(BENCHMARKS[name].render(result), flush=True)
        write_page(options)
    print(f"wrote {options.out / 'README.md'}")


def write_page(options: Options) -> None:
    """Write README.md from all results that exist."""
    parts = ["# Benchmarks", "Rendered by `python -m benchmarks.run` from `results/*.json`; do not edit by hand.\n"]
    parts += gpu_page.sections(options.out / "results")  # from `benchmarks.gpu`, for each device
    for name, benchmark in reversed(ON_THE_PAGE.items()):
        path = options.out / "results" / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            parts.append(section(benchmark.TITLE, benchmark.ABOUT, result, benchmark.render(result)))
    (options.out / "README.md").write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
