#!/bin/bash
# A batch over the nodes of a SLURM job: sbatch examples/slurm.sh
#SBATCH --job-name=v2edit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-task=8
#SBATCH --time=12:00:00

source /shared/venv/bin/activate
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
address=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 -- \
    v2edit batch /shared/tasks.jsonl -o /shared/out --model zai-org/CogVideoX-5b \
        --ray "$address:6379"
