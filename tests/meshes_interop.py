"transformers' models cut in two, against the same in one process; under torchrun in an environment that has them, see test_meshes.py."
import torch
import torch.distributed as dist

from mlstack.ddp.meshes import Mesh

torch.set_num_threads(1)


def families():
    import transformers as T
    common = dict(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    few = common | dict(num_key_value_heads=2)
    gpt2 = lambda words=40, **kw: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=words, n_positions=16, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0., resid_pdrop=0., embd_pdrop=0., bos_token_id=0, eos_token_id=0, **kw))
    return {'GPT-2': gpt2, 'GPT-2, eager': lambda: gpt2(attn_implementation='eager'), 'GPT-2, odd vocabulary': lambda: gpt2(41),
        'Llama': lambda: T.LlamaForCausalLM(T.LlamaConfig(**few)), 'Llama, tied': lambda: T.LlamaForCausalLM(T.LlamaConfig(**few, tie_word_embeddings=True)),
        'Mistral': lambda: T.MistralForCausalLM(T.MistralConfig(**few)), 'Qwen3': lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**few, head_dim=8)),
        'Phi-3': lambda: T.Phi3ForCausalLM(T.Phi3Config(**few)), 'GPT-NeoX': lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**common))}


def one_step(model, x, mask):
    out = model(input_ids=x, labels=x, attention_mask=mask)
    out.loss.backward()
    return out.loss.detach(), out.logits.detach()


def said(*names): return lambda m: f'{", ".join(names)}: {m}'


def main():
    mesh = Mesh(tp=2)
    for name,make in families().items():
        torch.manual_seed(0)
        alone = make()
        torch.manual_seed(0)
        model = make()
        x = torch.randint(3, 40, (3,16), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(x)
        mask[1,12:] = 0
        wanted = one_step(alone, x, mask)
        plan = mesh.plan_for(model)
        cut,_ = plan.cut(model)
        assert cut, name
        work = Mesh(tp=2)
        work.wrap(model)
        for a,b in zip(one_step(model, x, mask), wanted): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=said(name))
        for (n,p),q in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(work.cut.back(n, p.grad.full_tensor()), q.grad, rtol=1e-3, atol=1e-6, msg=said(name, n))
        if mesh.main: print(name, 'equal', flush=True)
    if mesh.main: print('all equal')
    dist.destroy_process_group()


if __name__ == '__main__': main()
