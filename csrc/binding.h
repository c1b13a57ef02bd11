// What the bindings share: arguments are checked here, with what was got and expected; below are plain pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

namespace py = pybind11;

namespace merfast {

inline std::string text(const std::vector<py::ssize_t>& shape) {
    std::ostringstream out;
    out << '[';
    for (std::size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
    out << ']';
    return out.str();
}

// Pointer to a C-contiguous array of exactly this type and shape, or a ValueError that names both.
template <class T>
const T* checked(const char* name, const py::array& array, const std::vector<py::ssize_t>& expected) {
    const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    const int usable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const bool contiguous = (array.flags() & usable) == usable;
    if (shape == expected && contiguous && py::isinstance<py::array_t<T>>(array)) {
        return static_cast<const T*>(array.data());
    }
    std::ostringstream message;
    message << name << ": got " << (contiguous ? "" : "non-contiguous or unaligned ")
            << std::string(py::str(array.dtype())) << ' ' << text(shape) << ", expected "
            << std::string(py::str(py::dtype::of<T>())) << ' ' << text(expected);
    throw py::value_error(message.str());
}

inline py::ssize_t extent(const char* name, const py::array& array, py::ssize_t ndim, py::ssize_t axis) {
    if (array.ndim() == ndim) return array.shape(axis);
    throw py::value_error(std::string(name) + ": got " + std::to_string(array.ndim()) + " dimensions, expected " +
                          std::to_string(ndim));
}

void bind_afg(py::module_& m);
void bind_crop_norm(py::module_& m);
void bind_decode(py::module_& m);
void bind_group_norm_gelu(py::module_& m);

}  // namespace merfast
