// The plugin for Samsung of ai-edge-litert 2.3.0 leaves one object of flatbuffers undefined, without which it does not load.
#define _GNU_SOURCE
#include <locale.h>

locale_t instance __asm__("_ZN11flatbuffers13ClassicLocale9instance_E");
__attribute__((constructor)) static void make(void) { instance = newlocale(LC_ALL_MASK, "C", (locale_t)0); }
