"""What the page sees and does of jobs and runs (`docs/monitor.md`)."""
