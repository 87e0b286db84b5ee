"""llama.cpp's own quantizer, called in the library that llama-cpp-python brings."""

import ctypes

FILE_TYPES = {
    "f16": 1,
    "q4_0": 2,
    "int4": 2,
    "q4_1": 3,
    "q8_0": 7,
    "int8": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
"""Source: llama.h, enum llama_ftype."""


def llama_quantize(source, target, file_type, importance=None):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 2
    floats = ctypes.POINTER(ctypes.c_float)
    rows = [
        llama_cpp.llama_model_imatrix_data(name.encode(), costs.ctypes.data_as(floats), costs.size)
        for name, costs in (importance or {}).items()
    ]
    table = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows)
    if rows:
        params.imatrix = table
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert not failed
    return target
