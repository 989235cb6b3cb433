"""`report RUN`: what a run's directory tells, as one page of HTML and its figures as files.

run_files.py   what the directory holds, read and checked
trace.py       its trace.json: pieces of computing, and calls, matched between ranks
pipeline.py    of one step: who computed, waited and moved data when, and the bubble
holdings.py    the process grid, and who holds which slice of which tensor
predicted.py   bytes sent and held: predicted beside measured
costs.py       which calls take the time
figures.py     the figures
page.py        the page: page.html, page.css, stepper.js with numbers put in
write.py       all of it, in a directory
"""
