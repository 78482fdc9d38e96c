"""Pictures of an estimate: `curves` and `stacks` compute what is shown, `draw` shows it with matplotlib, an extra."""
