// The Python module gptoss_mlx.kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "affine.h"
#include "bus_error.h"
#include "memory_map.h"
#include "mlx/version.h"
#include "primitives.h"
#include "rates.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;
using namespace gptoss;

template <class T, int dimensions>
using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

NB_MODULE(_native, m) {
  nb::module_::import_("mlx.core");       // registers mx.array
  m.attr("mlx_version") = mx::version();  // of the library that is loaded
  m.attr("built_for_mlx") = std::to_string(MLX_VERSION_MAJOR) + "." + std::to_string(MLX_VERSION_MINOR) + "." +
                            std::to_string(MLX_VERSION_PATCH);

  nb::class_<Tensor>(m, "Tensor")
      .def(nb::init<const mx::array&>(), "array"_a)
      .def(
          "__init__",
          [](Tensor* self, const std::string& path, size_t start, mx::Dtype dtype, const std::vector<int>& shape) {
            new (self) Tensor(path, start, dtype, mx::Shape(shape.begin(), shape.end()));
          },
          "path"_a, "start"_a, "dtype"_a, "shape"_a);
  nb::implicitly_convertible<mx::array, Tensor>();

  nb::class_<StoredMatrix>(m, "StoredMatrix")
      .def(nb::init<std::string, int, int, Tensor, std::optional<Tensor>, std::optional<Tensor>,
                    std::optional<Tensor>>(),
           "mode"_a, "bits"_a, "group"_a, "weight"_a, "scales"_a.none(), "biases"_a.none(), "bias"_a.none());

  nb::class_<LinearMap>(m, "LinearMap")
      .def(nb::init<const StoredMatrix&, int, int>(), "matrix"_a, "rows"_a, "columns"_a)
      .def("__call__", &LinearMap::operator(), "x"_a);

  nb::class_<AttentionLayer>(m, "AttentionLayer")
      .def(
          "__init__",
          [](AttentionLayer* self, int hidden, int heads, int kv_heads, int head_dim, int window, float eps,
             float scale, const mx::array& norm, const StoredMatrix& query, const StoredMatrix& key,
             const StoredMatrix& value, const StoredMatrix& output, const mx::array& sinks, const mx::array& freqs) {
            AttentionSizes sizes{hidden, heads, kv_heads, head_dim, window, eps, scale};
            new (self) AttentionLayer(sizes, norm, query, key, value, output, sinks, freqs);
          },
          nb::kw_only(), "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "window"_a, "eps"_a, "scale"_a, "norm"_a,
          "query"_a, "key"_a, "value"_a, "output"_a, "sinks"_a, "freqs"_a)
      .def("__call__", &AttentionLayer::operator(), "x"_a, "buffers"_a, "offset"_a)
      .def("together", &AttentionLayer::together, "x"_a, "buffers"_a, "offsets"_a)
      .def("attend", &AttentionLayer::attend, "q"_a, "k"_a, "v"_a, "buffers"_a, "offset"_a);

  nb::class_<MoeLayer>(m, "MoeLayer")
      .def(
          "__init__",
          [](MoeLayer* self, int hidden, int intermediate, int experts, int experts_per_token, int slots, float eps,
             float limit, const mx::array& norm, const StoredMatrix& router, const StoredMatrix& gate,
             const StoredMatrix& up, const StoredMatrix& down) {
            MoeSizes sizes{hidden, intermediate, experts, experts_per_token, slots, eps, limit};
            new (self) MoeLayer(sizes, norm, router, gate, up, down);
          },
          nb::kw_only(), "hidden"_a, "intermediate"_a, "experts"_a, "experts_per_token"_a, "slots"_a, "eps"_a,
          "limit"_a, "norm"_a, "router"_a, "gate"_a, "up"_a, "down"_a)
      .def("__call__", &MoeLayer::operator(), "x"_a)
      .def("route", &MoeLayer::route, "x"_a)
      .def("expert_outputs", &MoeLayer::expert_outputs, "normed"_a, "slots"_a, "outputs"_a)
      .def("combine", &MoeLayer::combine, "x"_a, "chosen"_a, "routing_weights"_a, "outputs"_a);

  m.def("rows", &rows_of, "matrix"_a, "index"_a);
  m.def(
      "untouched_memory",
      [](const std::vector<int>& shape, mx::Dtype dtype) {
        return untouched_memory(mx::Shape(shape.begin(), shape.end()), dtype);
      },
      "shape"_a, "dtype"_a);
  m.def(
      "fit_affine",
      [](Array<const float, 2> values, std::optional<Array<const float, 2>> importance, int bits,
         std::vector<float> shares, int rounds, Array<uint8_t, 2> codes, Array<float, 1> scales,
         Array<float, 1> biases) {
        const size_t count = values.shape(0), group = values.shape(1);
        if (codes.shape(0) != count || codes.shape(1) != group || scales.shape(0) != count ||
            biases.shape(0) != count || (importance && importance->shape(1) != group))
          throw std::invalid_argument("fit_affine: the shapes do not fit");
        fit_affine({int(group), bits, shares, rounds}, count, values.data(), importance ? importance->data() : nullptr,
                   importance ? importance->shape(0) : 1, codes.data(), scales.data(), biases.data());
      },
      "values"_a, "importance"_a.none(), "bits"_a, "shares"_a, "rounds"_a, "codes"_a, "scales"_a, "biases"_a,
      nb::call_guard<nb::gil_scoped_release>());
  m.def("map_file", &map_file, "path"_a);
  m.def("end_in_order_on_bus_error", &end_in_order_on_bus_error);
  m.def("available_kernels", &available_kernels);
  m.def("kernels_in_use", [] { return std::string(kernels().name); });
  m.def("use_kernels", &use_kernels, "name"_a);
  m.def("set_threads", &set_threads, "count"_a);
  m.def("threads", [] { return pool()->threads(); });
  const nb::call_guard<nb::gil_scoped_release> without_gil;
  m.def("read_bandwidth", [](size_t bytes) { return read_bandwidth(*pool(), bytes); }, "bytes"_a, without_gil);
  m.def("byte_product_rate", [] { return byte_product_rate(*pool()); }, without_gil);
  m.def("float_product_rate", [] { return float_product_rate(*pool()); }, without_gil);
}
