"""`fedmq bench kernels`: the kernels against the memory's limit and against everybody else's way to do the same.

=================  ===========================================================================
`command`          the options, and what a run is made of
`contest`          how contestants take turns and are timed
`workload`         how large everything is, whether it fits, and the updates that are folded
`peers`            which libraries take part, and which are absent
`machine`          what it ran on
`means`            weighted means of float32 updates: the roofline's own topic
`folds`            means of clipped and of encoded updates
`robust`           medians and distances
`vectors`          noise and Adam's step
`calls`            what one call costs, and from which n native pays
`bars`             what each kernel shall reach, and whether it did
`report`           tables for people, the document for machines
`plot`             the picture
=================  ===========================================================================
"""
