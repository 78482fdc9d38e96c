"""From a training log to a diagnosis, one step a module: lines -> story (with marks, oomtext, progress) -> kinds -> compare, remedies."""
