/* A software model of the AMX tile registers, enough to check csrc/cpu/amx.c where the hardware is missing: shapes come
 * from the configuration, misuse aborts, products round as TDPBF16PS does but for its flushing of subnormals. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct {
    int configured, rows[8], bytes[8];
    unsigned char data[8][16][64];
} amx;

static void amx_loadconfig(const unsigned char *config) {
    if (config[0] != 1) abort();
    for (int t = 0; t < 8; t++) {
        amx.bytes[t] = config[16 + 2 * t] | config[17 + 2 * t] << 8;
        amx.rows[t] = config[48 + t];
        if (amx.bytes[t] > 64 || amx.rows[t] > 16) abort();
    }
    memset(amx.data, 0, sizeof amx.data);
    amx.configured = 1;
}

static void amx_release(void) {
    amx.configured = 0;
}

static void amx_need(int t) {
    if (!amx.configured || !amx.rows[t]) abort();
}

static void amx_zero(int t) {
    amx_need(t);
    memset(amx.data[t], 0, sizeof amx.data[t]);
}

static void amx_load(int t, const void *base, size_t stride) {
    amx_zero(t);
    for (int i = 0; i < amx.rows[t]; i++)
        memcpy(amx.data[t][i], (const char *)base + (size_t)i * stride, (size_t)amx.bytes[t]);
}

static void amx_store(int t, void *base, size_t stride) {
    amx_need(t);
    for (int i = 0; i < amx.rows[t]; i++)
        memcpy((char *)base + (size_t)i * stride, amx.data[t][i], (size_t)amx.bytes[t]);
}

static float amx_half(const unsigned char *p) {
    uint32_t u = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void amx_multiply(int c, int a, int b) {
    amx_need(a), amx_need(b), amx_need(c);
    if (amx.rows[c] != amx.rows[a] || amx.bytes[c] != amx.bytes[b] || amx.bytes[a] != 4 * amx.rows[b]) abort();
    for (int m = 0; m < amx.rows[c]; m++)
        for (int k = 0; k < amx.bytes[a] / 4; k++)
            for (int n = 0; n < amx.bytes[c] / 4; n++) {
                float sum;
                memcpy(&sum, amx.data[c][m] + 4 * n, 4);
                sum = fmaf(amx_half(amx.data[a][m] + 4 * k), amx_half(amx.data[b][k] + 4 * n), sum);
                sum = fmaf(amx_half(amx.data[a][m] + 4 * k + 2), amx_half(amx.data[b][k] + 4 * n + 2), sum);
                memcpy(amx.data[c][m] + 4 * n, &sum, 4);
            }
}

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_loadconfig(config)
#define _tile_release() amx_release()
#define _tile_zero(t) amx_zero(t)
#define _tile_loadd(t, base, stride) amx_load(t, base, stride)
#define _tile_stream_loadd(t, base, stride) amx_load(t, base, stride)
#define _tile_stored(t, base, stride) amx_store(t, base, stride)
#define _tile_dpbf16ps(c, a, b) amx_multiply(c, a, b)
