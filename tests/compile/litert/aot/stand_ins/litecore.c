// Stands in for Samsung's Exynos AI LiteCore in tests: counts the operators it is given and hands back an empty graph. It compiles nothing.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t tensors, operators;
static int nothing;
static uint8_t empty[16];

void *create_graph(const char *name) { tensors = operators = 0; return &nothing; }
int define_tensor(void *graph, uint32_t *id) { *id = tensors++; return 0; }
int define_op_node(void *graph, uint32_t *id) { *id = operators++; return 0; }
int finish_build_graph(void *graph) {
    const char *path = getenv("STAND_IN_RECORD");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "litecore %u\n", operators); fclose(file); }
    return 0;
}
int serialize(void *graph, uint8_t **bytes, uint64_t *size) { *bytes = empty; *size = sizeof empty; return 0; }
void *graphgen_create(void) { return &nothing; }
int graphgen_initialize_context(void *handle, int soc) { return 0; }
// A graph was written; that it becomes no binary is said by refusing.
int graphgen_generate(void) { return 1; }

#define YES(name) int name(void) { return 0; }
YES(release_graph) YES(add_op_parameter) YES(set_quantize_param_for_tensor) YES(set_data_for_constant_tensor)
YES(set_graph_input_tensors) YES(set_graph_output_tensors) YES(graphgen_release) YES(graphgen_release_buffer)
