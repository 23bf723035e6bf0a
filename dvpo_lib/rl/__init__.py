"""One trainer for all methods: settings, sampling, rewards, the advantage estimator of each method, updates."""
