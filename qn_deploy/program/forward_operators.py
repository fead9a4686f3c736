"""The operators that the graph of a program may hold, by name: what ordinary models compute going forward, and nothing else.

Of a name, those overloads are allowed that compute new tensors from their arguments alone: none that writes into an argument, draws random
numbers or is known to TorchScript's interpreter only. Gradients (`*_backward`), files, `out=` and what trusts its arguments unchecked
(`segment_reduce(unsafe=True)`, `_native_batch_norm_legit`, `_fft_c2r`) are not among them: a forged graph could make them read memory that
is not theirs.

A .pt2 holds a graph as torch.export made it; `settled` replaces the operators that work in place, and takes out those of training.
"""

from __future__ import annotations

import re
from functools import cache

import torch

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_STRANGE = ("Generator", "Dimname", "Storage", "Stream", "Any", "str[]", "__torch__")  # in a schema: not for models


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORWARD = _words(
    # layers
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution bilinear embedding embedding_bag lstm "
    "gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention "
    # products
    "matmul mm bmm addmm baddbmm addbmm addmv addr mv dot vdot outer ger inner tensordot einsum kron chain_matmul linalg_multi_dot "
    "cross linalg_cross linalg_vecdot "
    # norms
    "layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm batch_norm instance_norm norm linalg_vector_norm "
    "linalg_matrix_norm linalg_norm _weight_norm norm_except_dim renorm cosine_similarity pairwise_distance cdist dist "
    # activations
    "relu relu6 hardtanh sigmoid tanh silu hardswish hardsigmoid gelu leaky_relu elu celu selu mish softplus log_sigmoid prelu glu "
    "threshold hardshrink softshrink softmax _softmax log_softmax _log_softmax _safe_softmax logit "
    # arithmetic
    "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow float_power square sqrt rsqrt exp exp2 "
    "expm1 log log2 log10 log1p abs absolute neg negative positive reciprocal sign sgn signbit floor ceil round trunc fix frac clamp "
    "clamp_min clamp_max clip maximum minimum fmax fmin sin cos tan sinh cosh asin acos atan asinh acosh atanh arcsin arccos arctan "
    "arctan2 atan2 sinc erf erfc erfinv lgamma digamma hypot logaddexp logaddexp2 addcmul addcdiv lerp deg2rad rad2deg copysign "
    "heaviside xlogy i0 special_expit special_erf special_erfc special_expm1 special_log1p special_exp2 special_softmax "
    "special_log_softmax special_xlogy nan_to_num ldexp frexp diff "
    # comparisons, logic and bits
    "eq ne lt le gt ge equal isnan isinf isfinite isclose logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
    "bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__ where any all isposinf "
    "isneginf isin "
    # reductions
    "sum mean prod amax amin aminmax max min argmax argmin var std var_mean std_mean logsumexp nansum nanmean median nanmedian mode "
    "cumsum cumprod logcumsumexp cummax cummin count_nonzero "
    # sorting and looking up
    "sort argsort topk kthvalue index index_select gather take take_along_dim masked_select nonzero unique_consecutive _unique2 "
    "bucketize searchsorted bincount one_hot histc "
    # writing into a copy
    "masked_fill masked_scatter scatter scatter_add scatter_reduce index_add index_copy index_fill index_put index_reduce slice_scatter "
    "select_scatter diagonal_scatter as_strided_scatter fill copy put "
    # shapes
    "view _unsafe_view view_as reshape reshape_as _reshape_alias flatten unflatten permute transpose t swapaxes swapdims moveaxis "
    "movedim adjoint mT numpy_T matrix_H squeeze unsqueeze slice select narrow expand expand_as broadcast_to broadcast_tensors repeat "
    "repeat_interleave tile stack cat concat concatenate hstack vstack dstack column_stack row_stack split split_with_sizes chunk "
    "tensor_split hsplit vsplit dsplit unsafe_split unsafe_chunk split_copy unbind flip fliplr flipud roll rot90 unfold diagonal diag "
    "diag_embed linalg_diagonal tril triu as_strided alias detach clone contiguous lift_fresh lift_fresh_copy meshgrid cartesian_prod "
    "combinations atleast_1d atleast_2d atleast_3d block_diag resolve_conj resolve_neg conj _conj view_as_real view_as_complex real "
    "imag complex polar angle "
    # images and signals
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator pad "
    "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d _pad_enum "
    "_pad_circular fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn "
    "fft_rfftn fft_irfftn fft_fftshift fft_ifftshift fft_fftfreq fft_rfftfreq stft istft hann_window hamming_window blackman_window "
    "bartlett_window kaiser_window "
    # making tensors
    "arange linspace logspace full full_like zeros zeros_like ones ones_like empty empty_like new_empty new_full new_zeros new_ones eye "
    "scalar_tensor tril_indices triu_indices empty_permuted new_empty_strided empty_strided "
    # kinds of numbers
    "to _to_copy type_as item _local_scalar_dense is_nonzero result_type "
    # linear algebra
    "linalg_inv linalg_inv_ex inverse linalg_det det trace linalg_solve linalg_solve_ex linalg_cholesky linalg_matrix_power "
    "matrix_power matrix_exp linalg_matrix_exp linalg_pinv pinverse "
    # sizes
    "sym_size sym_stride sym_numel sym_storage_offset "
)
TRAINING = _words("dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout")  # the identity in eval mode
ASSERTIONS = _words(
    "_assert_scalar _assert_async _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size _functional_assert_scalar"
)
REGIONS = ("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast")
SIZES = frozenset(
    [f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "and_", "or_")]
    + [f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge")]
    + [f"torch.sym_{name}" for name in ("int", "float", "max", "min", "not", "ite", "sum")]
)


def is_forward(target: str) -> bool:
    """True for an operator that a program may hold, as "torch.ops.aten.linear.default"."""
    return target in SIZES or _is_allowed(target, in_place=False)


def is_captured(target: str) -> bool:
    """True for an operator that a graph of torch.export may hold: besides those of a program, what `settled` takes out or replaces."""
    return is_forward(target) or target in REGIONS or _is_allowed(target, in_place=True)


@cache
def _is_allowed(target: str, in_place: bool) -> bool:
    match = _ATEN.fullmatch(target)
    if match is None:
        return False
    name, overload = match.groups()
    if name in ASSERTIONS or (in_place and name.rstrip("_") in TRAINING):
        return True
    if name not in FORWARD and not (in_place and name.endswith("_") and name[:-1] in FORWARD):
        return False
    operator = getattr(getattr(torch.ops.aten, name), overload, None)
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    schema = operator._schema
    qualified = f"{schema.name}.{schema.overload_name}".rstrip(".")
    if not torch._C._dispatch_has_kernel(qualified):  # TorchScript's interpreter alone knows it
        return False
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None and argument.alias_info.is_write]
    if written != (["self"] if name not in FORWARD else []):
        return False
    return bool(schema.returns) and not any(word in str(argument.type) for argument in schema.arguments for word in _STRANGE)
