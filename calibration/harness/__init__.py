"""Our own harness: training steps of diffusers' classes, for architectures that AI Toolkit does not have.

What a run file says (docs/cli.md) is what is gone through here: the transformer as from_pretrained leaves it, PEFT's adapter on its
attention, latents and prompts computed before, forward, loss, backward, clipping, optimizer. Recordings have the form of the trainer's
(calibration.trainer.recorder), so that the same extraction makes programs of them. `python -m calibration.harness` records, extracts and
checks; `families` holds what is known of each architecture, `worker` is the process that has the device.
"""
