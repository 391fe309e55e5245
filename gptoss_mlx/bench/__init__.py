"""How fast a model is on this machine: what is measured, beside which limits and which other runtimes, and how it is
shown.

results, facts      what was measured, and of what, as data
measure, stages, first_token    speeds, one step of decoding by stage, the start of a new process
roofline, routing   the least that the work takes; the experts that tokens go to
machine, energy, nvidia, background    what the system reports
comparison, peers, baseline     beside another runtime, and an earlier run
tables, report, formats, plot   how it is shown
"""
