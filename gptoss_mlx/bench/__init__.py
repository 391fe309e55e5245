"""How fast a model is on this machine: what is measured, beside which limits and which others, and how it is shown.

results, tables     what is said, as data and as rows of text
measure, stages, first_token    speeds, one step of decoding by stage, the start of a new process
roofline            what the work takes at least
machine, energy     what the system tells
peers, baseline     beside another runtime, and an earlier run
random_weights      a model to measure without a download
report, formats, plot, peers_report    how it is shown
"""
