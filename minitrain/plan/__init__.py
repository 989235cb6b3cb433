"""What a run will take, from the integers of its configuration alone: no array, no rank, no second of work.

One idea a file. What our own code allocates and sends is exact, and the tests compare it with what runs
measure; the forms of the literature stand beside it (`textbook.py`); times rest on assumptions, which are
listed (`step_time.py`).
"""
