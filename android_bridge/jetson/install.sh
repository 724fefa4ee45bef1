#!/bin/sh
# Install llmaas on a Jetson: android_bridge/systemd/install.sh with what suits the board. It takes the same words.
exec "$(dirname "$0")/../systemd/install.sh" --board jetson "$@"
