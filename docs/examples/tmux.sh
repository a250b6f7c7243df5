#!/bin/sh
# One worker a core, in a tmux session that outlives the login:  sh tmux.sh FOLDER
for core in $(seq 1 "$(nproc)"); do
    tmux new-session -d -s "bench-$core" "bench work --results '$1' --threads 1 --wait --for 12h"
done
tmux list-sessions
