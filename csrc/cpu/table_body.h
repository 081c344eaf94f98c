/* The tables of an instruction set: rows always, products where tile_body.h was included. */
VECTOR_FN void fill_rows(struct kernels *k) {
    k->rows = (struct row_kernels){
        .layer_norm = layer_norm,
        .difference = difference,
        .lerp = lerp,
        .finish = finish_rows,
        .wkv = wkv,
        .wkv7 = wkv7,
        .add_scaled = add_scaled,
        .maximum = maximum,
    };
}

#if defined(TILE_CASES)
/* bfloat16 differs from float32 in the weights only: inputs are widened as they are packed. */
VECTOR_FN void fill_products(struct kernels *k) {
    k->f32 = k->bf16 = (struct tile_product){
        .layout = PACKED_F32,
        .tile_rows = TILE_ROWS,
        .k_step = 2, /* pairs; float32 weights share it for the sake of one layout of the inputs */
        .k_block = 1024,
        .k_chunk = 1024,
        .run = {tile_f32, tile_widened},
        .widen = widen,
    };
}
#endif
