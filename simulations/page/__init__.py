"""``dccl report``: one self-contained HTML page over finished runs."""
