"""The fixtures of the records: a results folder, its jobs, and stores for it."""

from tests.tracking.conftest import *  # noqa: F403
