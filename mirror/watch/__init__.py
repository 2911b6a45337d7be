"""The daemon that keeps replicas equal: its settings, its pace, what it shows of itself."""
