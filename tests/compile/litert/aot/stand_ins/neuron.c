// Stands in for MediaTek's NeuroPilot in tests: says yes to every question and writes down how many operators it was given. It compiles nothing.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t operators;
static int nothing;

int Neuron_getVersion(uint8_t *version) {
    const char *major = getenv("STAND_IN_MAJOR");
    version[0] = major ? (uint8_t)atoi(major) : 8;
    version[1] = version[2] = 0;
    return 0;
}
int Neuron_getL1MemorySizeKb(uint32_t *size) { *size = 4096; return 0; }
int NeuronModel_create(void **model) { *model = &nothing; operators = 0; return 0; }
int NeuronModel_addOperation(void *model, int32_t type, uint32_t n_in, const uint32_t *in, uint32_t n_out, const uint32_t *out) { operators++; return 0; }
int NeuronModel_finish(void *model) {
    const char *path = getenv("STAND_IN_RECORD");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "neuron %u\n", operators); fclose(file); }
    return 0;
}
int NeuronModel_getExtensionOperandType(void *model, const char *name, uint16_t code, int32_t *type) { *type = 0x10000 + code; return 0; }
int NeuronModel_getExtensionOperationType(void *model, const char *name, uint16_t code, int32_t *type) { *type = 0x10000 + code; return 0; }
int NeuronCompilation_create(void *model, void **compilation) { *compilation = &nothing; return 0; }
int NeuronCompilation_createWithOptions(void *model, void **compilation, const char *options) { *compilation = &nothing; return 0; }
int NeuronCompilation_getSupportedOperations(void *compilation, uint32_t count, bool *supported) { memset(supported, 1, count * sizeof(bool)); return 0; }
int NeuronCompilation_getCompiledNetworkSize(void *compilation, size_t *size) { *size = 16; return 0; }
int NeuronCompilation_storeCompiledNetwork(void *compilation, void *buffer, size_t size) { memset(buffer, 0, size); return 0; }

#define YES(name) int name(void) { return 0; }
YES(NeuronModel_free) YES(NeuronModel_setName) YES(NeuronModel_addOperand) YES(NeuronModel_setOperandValue)
YES(NeuronModel_setOperandSymmPerChannelQuantParams) YES(NeuronModel_setOperandPerChannelQuantParams)
YES(NeuronModel_identifyInputsAndOutputs) YES(NeuronModel_relaxComputationFloat32toFloat16)
YES(NeuronModel_restoreFromCompiledNetwork) YES(NeuronModel_restoreFromCompiledNetworkV3)
YES(NeuronCompilation_free) YES(NeuronCompilation_finish) YES(NeuronCompilation_setPriority) YES(NeuronCompilation_setPreference)
YES(NeuronCompilation_setOptimizationString) YES(NeuronCompilation_setOptimizationHint) YES(NeuronCompilation_setL1MemorySizeKb)
YES(NeuronCompilation_getInputPaddedDimensions) YES(NeuronCompilation_getInputPaddedSize)
YES(NeuronCompilation_getOutputPaddedDimensions) YES(NeuronCompilation_getOutputPaddedSize)
YES(NeuronExecution_create) YES(NeuronExecution_free) YES(NeuronExecution_compute) YES(NeuronExecution_setBoostHint)
YES(NeuronExecution_setConfig) YES(NeuronExecution_setInputFromMemory) YES(NeuronExecution_setOutputFromMemory)
YES(NeuronMemory_createFromAHardwareBuffer) YES(NeuronMemory_createFromFd) YES(NeuronMemory_free)
