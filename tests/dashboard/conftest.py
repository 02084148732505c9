"""The fixtures of `dashboard_runs`, for all tests of the dashboard."""

from dashboard_runs import runs, trained, training, view  # noqa: F401
