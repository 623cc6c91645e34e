"""Reports on trainings: what a run's folder holds, as one page."""
