"""Scheduling: joins the rows of concurrent callers into batches, within queues that have bounds."""
