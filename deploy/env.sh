# The environment of every node of a cluster, and of the machine that you submit from: `. deploy/env.sh`.
# Ray reads most of these when it starts, so a running cluster does not see a later change.

export PATH="$HOME/.local/bin:$HOME/mgdet/.venv/bin:$PATH"  # uv, then the environment that the setup commands make on a node

# Whoever reaches a port of Ray can run code there, so every caller must show a token. The file holds the secret; only
# its path stands here. Head, workers and clients need the same file, and all must be told that tokens are in use.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.mgdet/ray_token"

# What mgdet sets itself where it starts Ray (docs/operations.md); here Ray is started without it
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0  # under `uv run` Ray would build a second environment for the workers
export RAY_CHDIR_TO_TRIAL_DIR=0
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5
export RAY_ENABLE_AUTO_CONNECT=0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
export PYTHONSAFEPATH=1  # no process imports from the directory where it was started

# Ray and MLflow report usage by default
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_DISABLE_TELEMETRY=true
