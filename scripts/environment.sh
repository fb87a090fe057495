# Sourced by the scripts: a virtual environment of the project's own with the pinned packages, made when it is missing.
# VENV_DIRECTORY names another place for it. (Not RAFTLOG_…: those are settings, and a node refuses one it does not know.)

# Hundreds of nodes are started here: without the compiled modules on disk each would compile all of them, for half a second of CPU.
unset PYTHONDONTWRITEBYTECODE

prepare_environment() {  # prepare_environment EXTRA...: install raftlog with these extras (test, check) unless they are there
  local extras stamp directory
  extras=$(IFS=,; echo "$*")
  directory="${VENV_DIRECTORY:-$PWD/.venv}"
  if [[ ! -x "$directory/bin/python" ]]; then
    "${PYTHON:-python3}" -m venv "$directory"
  fi
  # shellcheck disable=SC1091
  source "$directory/bin/activate"
  stamp="$directory/.raftlog-$extras-$(cksum <pyproject.toml | tr -d ' ')"
  if [[ ! -e "$stamp" ]]; then
    python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" >&2
    touch "$stamp"
  fi
}

prepare_streams_environment() {  # the stream processors of the tests, in an environment of their own inside the other one
  if ! (VENV_DIRECTORY="${VENV_DIRECTORY:-$PWD/.venv}/streams" && prepare_environment streams); then
    echo "the stream processors could not be installed: their tests are skipped" >&2
  fi
}
