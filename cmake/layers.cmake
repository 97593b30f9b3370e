# The layers, lowest first. A module may use the modules of lower rows and nothing else:
# icefield_library() refuses a wrong DEPS at configure time, tests/tidy_test.cc a wrong #include.
set(ICEFIELD_LAYERS
  "common"
  "proto"
  "kernels transport storage"
  "cluster_index"
  "cache_node"
  "client"
  "worker"
  "engine"
  "bench"
  "bindings tools"
  "tests")

# Server code: only its own folder and the programs that start one may link it.
set(ICEFIELD_SERVER_TARGETS cache_node_core cache_node_host)
set(ICEFIELD_SERVER_USERS cache_node tools bench tests)
