"""The headless part: the model, pure code over it, and the collectors and watcher that fill it."""
