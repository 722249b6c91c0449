# An example of what differs between clusters. Copy it to a place of your own, fill it in, and load it before a run:
#     source ~/dpar-site.sh && dpar run --profile slurm
export DPAR_SLURM_ACCOUNT=myproject           # who pays
export DPAR_GPU_PARTITION=a100                # as `sinfo` lists them
export DPAR_CPU_PARTITION=standard
export DPAR_GPUS=8                            # of one training, over all its nodes
export DPAR_NODES=1
export DPAR_MINUTES=1440                      # the longest that the partitions allow; trainings go on in the next job
export DPAR_CACHE=/local/scratch/$USER/dpar   # on the nodes' own disks: 39 GB for ImageNet at 256 px
export DPAR_SLURM_RESOURCES=$HOME/dpar-resources.yaml
