/* All loops for one instruction set. _kvcodec.c includes this file once for each; VARIANT names the copy. */
#include "_kvcodec_lanes.h"
#include "_kvcodec_values.h"
#include "_kvcodec_fields.h"
#include "_kvcodec_keys.h"
#undef VARIANT
#undef WIDE
#undef AT_ONCE
#undef VECTORS
#undef COLUMNS
#undef LESSER
#undef GREATER
#undef FUSED
#undef SHUFFLE
#undef SWAP_1
#undef SWAP_2
#undef SWAP_4
#undef SWAP_8
