"""Ratios, targets, and the part of the page of results."""

from __future__ import annotations

from typing import Any

LOADS = (1, 2, 5, 20)


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Of medians. Above 1: ours is so many times faster. `break_even_loads_*`: loads until staging paid."""
    medians = {
        name: {state: each["median"] for state, each in by.items()} for name, by in result["times"].items()
    }
    ours = medians["ours"]
    found = {
        "cold_vs_pydicom": medians["pydicom"]["cold"] / ours["cold"],
        "warm_vs_pydicom": medians["pydicom"]["warm"] / ours["warm"],
        "cold_vs_htj2k_default": medians["pydicom, HTJ2K"]["cold"] / ours["cold"],
        "cold_vs_htj2k_tuned": medians["tuned, HTJ2K"]["cold"] / ours["cold"],
        "cold_vs_j2k": medians["pydicom, J2K"]["cold"] / ours["cold"],
        "cold_vs_zarr": medians["zarr-python"]["cold"] / ours["cold"],
        "warm_vs_zarr": medians["zarr-python"]["warm"] / ours["warm"],
        "cold_vs_fromfile": medians["np.fromfile"]["cold"] / medians["ours, fresh array"]["cold"],
        "warm_vs_fromfile": medians["np.fromfile"]["warm"] / medians["ours, fresh array"]["warm"],
        "verify_share_of_cold": medians["ours, verified"]["cold"] / ours["cold"] - 1,
    }
    stage = result["stage_seconds"]
    for name, way, cost in (
        ("pydicom", "pydicom", "plain"),
        ("htj2k_default", "pydicom, HTJ2K", "htj2k"),
        ("htj2k_tuned", "tuned, HTJ2K", "htj2k"),
        ("j2k", "pydicom, J2K", "j2k"),
    ):
        found[f"break_even_loads_{name}"] = stage[cost] / (medians[way]["cold"] - ours["cold"])
    return {name: round(value, 2) for name, value in found.items()}


TARGETS = {
    "cold_vs_pydicom": 4.5,
    "warm_vs_pydicom": 10,
    "cold_vs_htj2k_default": 20,
    "cold_vs_htj2k_tuned": 6,
    "cold_vs_j2k": 80,
    "cold_vs_zarr": 1.5,
    "warm_vs_zarr": 2.5,
    "cold_vs_fromfile": 1.0,
    "warm_vs_fromfile": 1.0,
}
AT_MOST = {"verify_share_of_cold": 0.10, "break_even_loads_pydicom": 2, "break_even_loads_htj2k_default": 2,
           "break_even_loads_htj2k_tuned": 2, "break_even_loads_j2k": 2}  # fmt: skip


def report(result: dict[str, Any]) -> str:
    found: dict[str, float] = result["ratios"]
    box, size = result["machine"], result["bytes"] / 1e6
    lines = [
        "## Staging: a staged volume beside the files it was made of",
        "",
        f"Command `{result['command']}` at {result['at']}.",
        f"Machine: {box['cpus']} CPUs ({box['cpu']}), {box['memory_gb']} GB, {box['system']}.",
        f"No GPU: mode `numpy`. One series of {result['slices']} slices, 512 x 512, 12 bits in 16:",
        f"{size:.0f} MB. Interleaved rounds, medians.",
        "Cold: the pages of the files were dropped from this machine's cache; the disk may cache.",
        "Versions: " + ", ".join(f"{name} {each}" for name, each in result["versions"].items()) + ".",
        "JPEG 2000 was read with fewer slices and scaled. pydicom runs on one thread, as by default.",
        "",
        "| way | cold s | MB/s | warm s | MB/s | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for name, by in result["times"].items():
        cold, warm = by["cold"]["median"], by["warm"]["median"]
        rounds = result["rounds"][name]
        lines.append(
            f"| {name} | {cold:.3f} | {size / cold:.0f} | {warm:.3f} | {size / warm:.0f} | {rounds} |"
        )
    costs = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["stage_seconds"].items())
    lines += ["", f"Staging it once, objects in the page cache: {costs}.", ""]
    lines += ["| ratio | measured | target | |", "|---|---|---|---|"]
    for name, value in found.items():
        if name in AT_MOST:
            goal, good = f"at most {AT_MOST[name]:g}", value <= AT_MOST[name]
        else:
            goal, good = f"at least {TARGETS[name]:g}", value >= TARGETS[name]
        lines.append(f"| {name} | {value:g} | {goal} | {'met' if good else 'missed'} |")
    lines += ["", "Seconds for so many cold loads, staging included:", ""]
    lines += ["| loads | staged from HTJ2K | HTJ2K by pydicom | HTJ2K, tuned |", "|---|---|---|---|"]
    cold = {name: by["cold"]["median"] for name, by in result["times"].items()}
    for loads in LOADS:
        ours = result["stage_seconds"]["htj2k"] + loads * cold["ours"]
        default, tuned = loads * cold["pydicom, HTJ2K"], loads * cold["tuned, HTJ2K"]
        lines.append(f"| {loads} | {ours:.1f} | {default:.1f} | {tuned:.1f} |")
    return "\n".join(lines) + "\n"
