"""Where a plan runs: site profiles, submission through submitit, queries."""
