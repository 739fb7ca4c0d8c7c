// Multiplies matrices with the ggml it is linked to and compares with plain float arithmetic: each
// weight type, in the plain CPU buffer and in every extra buffer type (AMX, repacked) that takes
// it. tools/setup runs it as a child process: what the processor reports is no proof that it runs,
// and a kernel that dies of an illegal instruction must take down this program, not the user's.
// Prints one line a product; exit 0: all right, 1: a wrong result (a signal: the build does not
// run).
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { depth = 512, rows = 96, max_columns = 70 };

// Activations are rounded to 8 bits by most kernels (error about 0.005); a broken one is far off.
static const double tolerance = 0.02;

static float next_value(uint32_t* state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 23) - 1.0f;  // [-1, 1)
}

// Relative error of w * x in the given buffer type; negative: ggml does not offer the product
// there.
static double product_error(ggml_backend_t backend, ggml_backend_buffer_type_t buffer_type,
                            enum ggml_type type, int64_t columns) {
    static float weights[rows * depth], exact[rows * depth], inputs[max_columns * depth];
    static float result[max_columns * rows];
    static char packed[rows * depth * sizeof(float)];
    uint32_t state = 7;
    for (int64_t i = 0; i < rows * depth; i++) weights[i] = next_value(&state);
    for (int64_t i = 0; i < columns * depth; i++) inputs[i] = next_value(&state);
    ggml_quantize_chunk(type, weights, packed, 0, rows, depth, NULL);
    ggml_get_type_traits(type)->to_float(packed, exact, (int64_t)rows * depth);

    struct ggml_init_params params = {ggml_tensor_overhead() * 8 + ggml_graph_overhead(), NULL,
                                      true};
    struct ggml_context *weight_context = ggml_init(params), *context = ggml_init(params);
    struct ggml_tensor* w = ggml_new_tensor_2d(weight_context, type, depth, rows);
    struct ggml_tensor* x = ggml_new_tensor_2d(context, GGML_TYPE_F32, depth, columns);
    struct ggml_tensor* y = ggml_mul_mat(context, w, x);
    ggml_backend_buffer_t weight_buffer =
        ggml_backend_alloc_ctx_tensors_from_buft(weight_context, buffer_type);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);

    double error = -1.0;
    if (weight_buffer && buffer && ggml_backend_supports_op(backend, y)) {
        ggml_backend_tensor_set(w, packed, 0, ggml_nbytes(w));
        ggml_backend_tensor_set(x, inputs, 0, ggml_nbytes(x));
        struct ggml_cgraph* graph = ggml_new_graph(context);
        ggml_build_forward_expand(graph, y);
        double wrong = INFINITY, norm = 1.0;
        if (ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS) {
            ggml_backend_tensor_get(y, result, 0, ggml_nbytes(y));
            wrong = norm = 0.0;
            for (int64_t column = 0; column < columns; column++) {
                for (int64_t row = 0; row < rows; row++) {
                    double sum = 0.0;
                    for (int64_t k = 0; k < depth; k++)
                        sum += (double)exact[row * depth + k] * inputs[column * depth + k];
                    double difference = result[column * rows + row] - sum;
                    wrong += difference * difference;
                    norm += sum * sum;
                }
            }
        }
        error = sqrt(wrong / norm);
    }
    ggml_backend_buffer_free(buffer);
    ggml_backend_buffer_free(weight_buffer);
    ggml_free(context);
    ggml_free(weight_context);
    return error;
}

int main(void) {
    const enum ggml_type types[] = {GGML_TYPE_F16,  GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                    GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K};
    const int64_t widths[] = {1, 5, 32, max_columns};  // decoding, odd, one tile, several tiles
    ggml_backend_t backend = ggml_backend_cpu_init();
    if (!backend) {
        printf("no CPU backend\n");
        return 1;
    }
    ggml_backend_cpu_set_n_threads(backend, 2);
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    ggml_backend_dev_get_extra_bufts_t get_extra =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");

    ggml_backend_buffer_type_t buffer_types[17] = {ggml_backend_cpu_buffer_type()};
    int count = 1;
    for (ggml_backend_buffer_type_t* extra = get_extra ? get_extra(device) : NULL;
         extra && *extra && count < 17; extra++) {
        buffer_types[count++] = *extra;
    }

    int failures = 0;
    for (int b = 0; b < count; b++) {
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            for (size_t n = 0; n < sizeof widths / sizeof *widths; n++) {
                double error = product_error(backend, buffer_types[b], types[t], widths[n]);
                if (error < 0.0) continue;
                int wrong = !(error < tolerance);
                failures += wrong;
                printf("%-12s %-6s %3d columns: relative error %.5f%s\n",
                       ggml_backend_buft_name(buffer_types[b]), ggml_type_name(types[t]),
                       (int)widths[n], error, wrong ? "  WRONG" : "");
                fflush(stdout);
            }
        }
    }
    ggml_backend_free(backend);
    return failures != 0;
}
