"""The stages' JSON files of gpu.sh as one, gpu.json, and what matters of it in a few lines.

    python -m benchmarks.summary DIRECTORY"""
import json
import sys
from pathlib import Path

from benchmarks.measure import line_of

STAGES = ("recorded", "tests", "parity", "training_step", "quantization", "generation")
LEFT_OUT = ("runs", "calls", "most", "trains", "last_loss", "rate", "bytes_moved_at_least",
            "dequantize_peak_mb", "quantize_peak_mb")


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"finished": False, "error": f"{type(error).__name__}: {error}"}


def lines_of(name: str, stage: dict) -> list[str]:
    lines = [f"== {name}: {'finished' if stage.get('finished') else 'NOT FINISHED'}  {stage.get('error', '')}"]
    if name in ("recorded", "tests"):
        lines.append(f"{stage.get('outcomes')}  {stage.get('seconds')} s  skipped {stage.get('skipped')}")
        return lines + [f"FAILED {f['test']}: {f['text'].strip().splitlines()[-1][:200] if f['text'].strip() else ''}"
                        for f in stage.get("failures", [])]
    machine = {k: v for k, v in stage.get("machine", {}).items()}
    lines += [line_of(machine), line_of(stage.get("versions", {}))] if machine else []
    return lines + [line_of({k: v for k, v in row.items() if k not in LEFT_OUT}) for row in stage.get("rows", [])]


def main() -> None:
    place = Path(sys.argv[1])
    stages = {name: read(place / f"{name}.json") for name in STAGES if (place / f"{name}.json").is_file()}
    missing = [name for name in STAGES if name not in stages]
    (place / "gpu.json").write_text(json.dumps({"missing": missing, **stages}, indent=1) + "\n", encoding="utf-8")
    for name in stages:
        (place / f"{name}.json").unlink()  # few files come back from a lent machine
    print("\n".join(line for name, stage in stages.items() for line in lines_of(name, stage)))
    if missing:
        print(f"no report of: {', '.join(missing)}")


if __name__ == "__main__":
    main()
