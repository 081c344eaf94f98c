/* Compiles what follows, up to target_end.h, for the instruction set named by TARGET. */
#define TARGET_TEXT_(x) #x
#define TARGET_TEXT(x) TARGET_TEXT_(x)
#if defined(__clang__)
_Pragma(TARGET_TEXT(clang attribute push(__attribute__((target(TARGET))), apply_to = function)))
#else
_Pragma("GCC push_options") _Pragma(TARGET_TEXT(GCC target(TARGET)))
#endif
