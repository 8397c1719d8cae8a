"""Runs of every combination of some values: what each is called, how it went, and the spread of its figures over seeds.

    SWEEP/NAME/          the run of a combination, as `zkit run` leaves it
    SWEEP/sweep.json     every combination with its figures, and their mean and spread over seeds
    SWEEP/sweep.md       the same to read
    SWEEP/sweep.html     the same as a page, with plots
"""
