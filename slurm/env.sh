# What a job does before hpc-marl: edit it for your site. The scripts of this directory source it.
# Jobs that hpc-marl itself submits do not: they run `setup` of conf/cluster/<site>.yaml.

# module purge
# module load python/3.11 cuda/12.4

# The Python environment: the clone's own, unless one is active already.
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -f .venv/bin/activate ]]; then
    source .venv/bin/activate
fi

# hpc-marl gives every worker its threads itself.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1
export PYTHONUNBUFFERED=1
