/* The table of an instruction set whose products are float32 FMA: bfloat16 differs in the weights only. */
VECTOR_FN void fill_table(struct kernels *k) {
    k->rows = (struct row_kernels){
        .layer_norm = layer_norm,
        .difference = difference,
        .lerp = lerp,
        .finish = finish_rows,
        .wkv = wkv,
        .add_scaled = add_scaled,
        .maximum = maximum,
    };
    k->f32 = k->bf16 = (struct tile_product){
        .layout = PACKED_F32,
        .tile_rows = TILE_ROWS,
        .k_step = 2, /* pairs; float32 weights share it for the sake of one layout of the inputs */
        .k_block = 512,
        .run = {tile_f32, tile_widened},
    };
}
