# A CPU image: docker build -t zeroshot .   (docs/install.md says how to run it)
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY zeroshot zeroshot
# torch for CPUs comes first, so that the package does not bring the CUDA libraries.
RUN python -m venv /opt/zeroshot \
    && grep -E '^torch(vision)?==' constraints.txt > torch.txt \
    && /opt/zeroshot/bin/pip install --no-cache-dir -r torch.txt \
        --index-url https://download.pytorch.org/whl/cpu \
    && /opt/zeroshot/bin/pip install --no-cache-dir -c constraints.txt ".[report,serve]"

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 zeroshot && mkdir /data && chown zeroshot /data
COPY --from=build /opt/zeroshot /opt/zeroshot
ENV PATH=/opt/zeroshot/bin:$PATH ZEROSHOT_CACHE=/data/embeddings HF_HOME=/data/models PYTHONUNBUFFERED=1
USER zeroshot
VOLUME /data
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["zeroshot"]
CMD ["--help"]
