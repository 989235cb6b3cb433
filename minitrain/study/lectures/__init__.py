"""Lectures: topics that are shown on several ranks. A lecture is a function of a page and a communicator."""
