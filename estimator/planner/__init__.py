"""Plans: which edit of a config makes its job safe on a card at the smallest loss, and how far it can grow.

`subject` is the config and what its edits make of it; `space` the edits there are; `search` finds; `costs` says what an edit costs;
`plans` puts an answer together; `steps` walks by hand, as the guides do; `sweep` is for tables of many cells; `textedit` edits the file.
"""
