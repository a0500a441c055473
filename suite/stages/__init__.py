"""What a worker runs for each kind of stage: read inputs from the store, compute, hand files to the attempt."""
