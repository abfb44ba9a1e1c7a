"""Announced studies: fetched from sources that the site has listed, stored like everything else."""
