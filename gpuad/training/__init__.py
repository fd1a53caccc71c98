"""What `gpuad train` is made of: settings, the job, its folder, the loop."""
