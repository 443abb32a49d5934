"""`clip-itm train RECIPE`: one run, started, resumed or recognised as finished."""

import argparse
from pathlib import Path

from clip_itm.visible import say


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "train",
        help="fine-tune a model as a recipe says",
        description="Train, evaluate on val, keep the best and the last checkpoint, print the final table. An "
        "interrupted run is resumed by the same command; a finished one is not repeated.",
        epilog=_keys,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="YAML file, such as recipes/sample/clip.yaml")
    parser.add_argument("--overwrite", action="store_true", help="delete what a run wrote there and start again")


def _keys() -> str:
    from clip_itm.recipe import describe_keys  # the other verbs do not wait for the sections of a recipe

    return f"keys of a recipe:\n{describe_keys()}"


def run(args) -> int:
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.folder import RunFolder

    recipe = load_recipe(args.recipe, args.overrides)  # a wrong key is reported before torch is imported
    if not RunFolder(Path(recipe.output_dir)).is_finished:
        require_recipe(recipe)

    from clip_itm.commands.terminal import print_table
    from clip_itm.distributed import process_index
    from clip_itm.evaluation.report import terminal_table
    from clip_itm.runs.train import beaten_by_step_0, best_effort, train

    results = train(recipe, overwrite=args.overwrite)
    if process_index() == 0:
        with best_effort("the table", f"all figures are in {recipe.output_dir}/results.json"):
            title = f"{recipe.output_dir}: recall on {results['split']}, percent"
            print_table(terminal_table(run_rows(results), title=title))
            if note := beaten_by_step_0(results):
                say(note)
        say(f"model, recipe, noise and table: {recipe.output_dir}/best")
    return 0


def stopped(args) -> str:
    """What to say when Ctrl-C has stopped the run."""
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.folder import RunFolder

    return stopped_runs([RunFolder(Path(load_recipe(args.recipe, args.overrides).output_dir))])


def stopped_runs(runs: list) -> str:
    """Whether the same command resumes from a checkpoint, starts again, or has nothing left to do; `RunFolder`s."""
    if runs and all(run.is_finished for run in runs):
        return "stopped; the run is finished, and the same command shows its results"
    kept = [checkpoint for run in runs if (checkpoint := run.newest_checkpoint)]
    if not kept:
        return "stopped before the first checkpoint: the same command begins anew"
    newest = max(kept, key=lambda path: (path / "trainer_state.json").stat().st_mtime)
    return f"stopped; the same command goes on from the last checkpoint ({newest})"


def run_rows(results: dict) -> list[tuple[str, dict]]:
    """Rows of the final table: zero-shot, best by val, last, under every protocol."""
    stages = {
        "zero_shot": "step 0 (before training)",
        "best": f"best checkpoint by val (step {results['best_step']})",
        "last": "last",
    }
    return [(label, result) for stage, label in stages.items() for result in results[stage].values()]
